"""Tables and figures from finished run folders."""
