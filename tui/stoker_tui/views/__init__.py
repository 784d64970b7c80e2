"""What is said: pure functions from what is known (`stoker_tui.model`) to lines and rows. No widget in here."""
