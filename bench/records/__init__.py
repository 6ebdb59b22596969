"""Records and the folders that hold them: what other rooms read and write. No torch here."""
