"""The import of MXNet, devices, errors and files: used by all other packages."""
