"""Write a model directory so that it is either complete or absent."""
