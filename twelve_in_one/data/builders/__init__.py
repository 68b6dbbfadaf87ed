"""One TFDS builder per dataset, and the files that `data.build` and `data.own` add to records."""
