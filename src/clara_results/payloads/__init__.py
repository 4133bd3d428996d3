"""Where files are; the one place where a URI becomes a path."""

from clara_results.payloads.folder import FolderStore, StoredFile, Upload

__all__ = ["FolderStore", "StoredFile", "Upload"]
