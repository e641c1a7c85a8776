// A button in each block of Python that puts its code on the clipboard.
document.querySelectorAll('div.highlight-python pre').forEach(pre => {
  const button = document.createElement('button')
  button.className = 'copy'
  button.type = 'button'
  button.textContent = 'Copy'
  button.addEventListener('click', async () => {
    await navigator.clipboard.writeText(pre.textContent)
    button.textContent = 'Copied'
    setTimeout(() => { button.textContent = 'Copy' }, 1500)
  })
  pre.parentElement.append(button)
})
