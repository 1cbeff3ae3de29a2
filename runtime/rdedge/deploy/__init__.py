"""A bundle onto a board over ssh: copied, verified, tried, switched to in one step, watched, and taken back if bad.

The workstation's end (``deploy_verb``, ``ssh``) copies and shows; all that must happen whole is done by the board's end
(``receive_verb``, ``board``), which needs no connection any more once it has the files.
"""
