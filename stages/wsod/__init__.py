"""Stage `wsod`: weakly supervised detection: WSDDN, OICR and MIST (paper section on WSOD baselines)."""
