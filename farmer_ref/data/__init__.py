"""Images: named data sets, a user's own pictures, and the order in which training reads them."""
