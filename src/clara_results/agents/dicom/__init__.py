"""The DICOM agent: delivers Part 10 files to DIMSE receivers by C-STORE."""
