"""Why a network says so: class activation maps, attributions of slices, and checks that the maps mean something."""
