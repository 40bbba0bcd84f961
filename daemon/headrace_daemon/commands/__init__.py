"""The subcommands of ``headrace``, one module each: `add_arguments` and `run`."""
