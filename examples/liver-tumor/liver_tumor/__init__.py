"""The operators of the liver-tumour pipeline: programs that read folders and write folders.

::

    dicom_reader     DICOM series → MHD volume
    segmentation     volume → label map, and what its values mean
    dicom_writer     label map and series → DICOM SEG, key images, measurement report
    step             what a pipeline gives its steps: folders, ids; exit codes
    series           which series there are, and whether one is a volume
    label_map        a label map and the description that goes with it
    results/         the DICOM objects that dicom_writer makes

Run one with ``python -m liver_tumor.dicom_reader --help``.
"""
