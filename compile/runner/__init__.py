"""C sources that are compiled into every bundle."""
