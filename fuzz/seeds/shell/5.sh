cat <<'E' <<-F
'
E
	"
	F
echo \
 ${{ matrix.v }} $((1 + (2)))
