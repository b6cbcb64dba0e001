"""Models in a runtime's own format, as torch modules that a task calls as it calls every other. One file a runtime."""
