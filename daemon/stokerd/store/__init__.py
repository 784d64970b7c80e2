"""Tables, migrations, transactions, the event log, content-addressed files."""
