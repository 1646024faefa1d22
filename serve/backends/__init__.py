"""What runs a graph. A new backend is one module, one class, one line in `shipline/plugins.py`."""
