(true)#it's a comment
echo '${{ matrix.v }}'
