"""Published experts of GLUE tasks, from the hub."""
