"""The `stoker` command: one file for each verb, composed in `main`."""
