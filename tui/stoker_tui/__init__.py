"""The Textual program: one terminal for the whole loop. Talks to the daemon through `stoker.client` alone."""
