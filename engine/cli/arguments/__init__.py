"""Arguments: the options of the command lines and what they name; imports no command but in the parser of all."""
