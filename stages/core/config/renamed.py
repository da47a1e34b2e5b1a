"""Old names of settings, so that an old command or file says what to write now: stage -> old name -> new name.

Names are dotted where a setting lies in a group. A colon after the new name begins a remark, for a setting whose
meaning changed with its name: ``"trunk_lr": "backbone_lr_factor: a multiple of lr"``.
"""

RENAMED: dict[str, dict[str, str]] = {}
