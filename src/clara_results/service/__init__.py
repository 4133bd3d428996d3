"""Use cases of the Results Service. They know no HTTP; each runs inside one transaction of the store."""
