"""The Stoker daemon: one folder for each arrow of the loop. See docs/architecture.md."""
