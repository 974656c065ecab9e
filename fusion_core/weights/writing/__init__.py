"""A model directory that is either complete or not there."""
