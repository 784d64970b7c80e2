"""What a person is on: a screen composes widgets, takes keys and hands them the lines of `stoker_tui.views`."""
