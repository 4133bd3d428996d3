"""Measures how fast results reach a DICOM receiver, beside DCMTK's and pynetdicom's senders."""
