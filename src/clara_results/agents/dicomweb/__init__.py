"""The DICOMweb agent: delivers Part 10 files to DICOMweb services by STOW-RS."""
