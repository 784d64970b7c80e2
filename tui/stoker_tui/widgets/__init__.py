"""What is drawn: widgets that send only the cells that changed."""
