"""DICOM objects made of a label map and the series that it belongs to.

::

    source         the series; what its results take from it: patient, study, character set, moment
    identity       UIDs that derive from job, series and content
    segments       the DICOM SEG
    key_images     secondary captures of the slices where each segment is largest
    report         TID 1500 measurement report with the segments' volumes
"""
