"""Projects: who owns rows, and how much each may use."""
