((echo "))") ; echo "${{ matrix.v }}")
