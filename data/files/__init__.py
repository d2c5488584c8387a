"""What is read from files, within limits: the only code that decodes JSON, TOML and archives."""
