"""Forms of other programs: label tools, evaluation servers, the files of the release."""
