"""Charts as SVG, drawn by matplotlib in the colours of the page."""
