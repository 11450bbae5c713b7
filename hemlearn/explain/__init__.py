"""Why a network says so: class activation maps, slice attributions, and checks that the maps mean something."""
