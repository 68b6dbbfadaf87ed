"""From records to arrays of a batch."""
