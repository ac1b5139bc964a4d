echo ${A${{ matrix.v }}}
