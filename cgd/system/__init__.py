"""What everything else stands on: MXNet made importable, devices, errors, files."""
