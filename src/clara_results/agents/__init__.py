"""Agents: processes that claim tasks, deliver them, and report file by file.

``runner`` holds leases and reports for any exporter; ``exporter`` is what an exporter is; ``dicom`` is one.
"""
