"""One HTML page that shows a packed data set: `collect.py` reads, `draw.py` makes pictures, `page.py` the HTML."""
