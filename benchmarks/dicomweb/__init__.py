"""How fast results reach a DICOMweb service, beside dicomweb-client, and beside our own C-STORE to the same archive."""
