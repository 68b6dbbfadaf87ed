"""One TFDS builder for each dataset, and what `data.build` and `data.own` make beside records."""
