"""Images: named data sets, a user's own folders, and the order in which training reads them."""
