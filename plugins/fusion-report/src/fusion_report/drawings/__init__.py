"""Pictures in SVG, drawn by matplotlib in the colours of the page."""
