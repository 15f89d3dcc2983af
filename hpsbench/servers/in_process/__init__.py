"""A Triton backend that runs Python models inside the server, on inputs that are not copied."""
