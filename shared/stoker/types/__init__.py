"""Resource types, as they are on the wire and in the store. Import the parts from their modules."""
