"""Write files whole or not at all (`atomic`); let one process at a time into a folder (`lock`)."""
