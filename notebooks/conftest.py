"""nbval runs the notebooks as tests. It compares no bitmaps; neither does it compare vector graphics here, which carry
the date and the machine's last digits. What they must show, cells assert and print."""


def pytest_collection_modifyitems(items: list) -> None:
    """Leave SVG out of what nbval compares, as it leaves PNG."""
    for notebook in {item.parent for item in items if hasattr(item.parent, "skip_compare")}:
        notebook.skip_compare += ("image/svg+xml",)
