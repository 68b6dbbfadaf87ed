"""Networks that find regions in photos and describe them; `detector` is their common interface."""
